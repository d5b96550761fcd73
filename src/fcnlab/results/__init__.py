"""What runs leave behind, read and scored with numpy alone: nothing here imports torch."""
