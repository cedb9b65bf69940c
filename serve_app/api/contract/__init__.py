"""The contract's dialect: its OpenAPI document, routes and documentation page."""
