"""Pages for people: which tokens got credit, how runs went. Nothing here is read by the trainer."""
