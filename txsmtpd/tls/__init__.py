"""TLS configuration: certificates for the server, ``ssl.SSLContext`` objects, and a certificate authority for tests.

The STARTTLS command itself is part of the engine.
"""
