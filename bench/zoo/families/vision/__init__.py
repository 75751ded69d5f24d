"""Models of pictures and videos."""
