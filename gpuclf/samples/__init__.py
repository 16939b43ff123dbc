"""Samples as models read them: standardised on the fly, streamed, walked in blocks."""
