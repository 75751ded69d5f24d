"""Random networks by number: structures in a row, put to a use, judged by streams that are written by hand."""
