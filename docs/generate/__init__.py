"""What mkdocs writes into pages while it builds them: recipe keys, help of the commands, measurements."""
