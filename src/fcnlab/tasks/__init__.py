"""One function of the config for each verb; nothing below this folder sees a config."""
