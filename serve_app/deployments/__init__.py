"""The Ray floor: the application's deployments, the only code that imports Ray. All below decides; this acts."""
