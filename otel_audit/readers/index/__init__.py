"""The query index: `index.db` beside the trail, made from it and never needed."""
