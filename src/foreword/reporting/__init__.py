"""What commands write for people: tables, plots, pages."""
