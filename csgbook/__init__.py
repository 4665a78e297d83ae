"""What the book adds to csglib: its questions, tables and figures."""
