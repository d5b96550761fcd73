"""One module per verb. Each verb is a function of the composed configuration."""
