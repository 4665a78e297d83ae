"""The machinery of the book: what its pages show, and nothing that training or measuring needs."""
