"""The OpenAPI document that the root's dialect keeps, and its pages."""
