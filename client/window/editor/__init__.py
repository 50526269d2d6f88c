"""The page's widget: layout and editing are pure and know no window, drawing is Dear ImGui's."""
