"""Child processes and what they leave behind: who owns them, where their files are, how they end with their owner."""
