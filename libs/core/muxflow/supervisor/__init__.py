"""`muxflow up`: everything of one machine under one supervisor."""
