"""What the web page keeps and lists: assets, gallery, exports, user data, pages of node packs."""
