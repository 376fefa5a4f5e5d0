"""The scenarios' members, made from scratch; nothing but these generators is committed."""
