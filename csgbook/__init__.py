"""The book's machinery: claims and their verdicts, tables, figures, explorers.  It may import csglib, never the other way."""
