"""What pages show: tables, figures, drawings, and the sentences around them."""
