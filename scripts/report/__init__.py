"""Tables, figures and conclusions of what was measured."""
