"""What patches change inside a UNet, row by row."""
