"""HTTP in front of the application: HAProxy, Serve's proxy, and the ingress's listener."""
