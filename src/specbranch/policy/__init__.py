"""Pure decisions: what to draft, where to branch, what to accept, and whether to speculate."""
