"""Push a verified folder, and nothing else, to the Hugging Face Hub."""
