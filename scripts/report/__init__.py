"""Tables, figures and findings of what was measured."""
