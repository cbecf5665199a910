"""HTML pages: token credit and training curves. The trainer uses nothing from here."""
