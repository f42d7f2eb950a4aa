"""The compendium: the claims of two papers, judged by notebooks on this library."""
