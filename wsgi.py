"""The WSGI entry point: ``application`` of the KME whose configuration HSMKME_CONFIG names.

`hsmkme serve` is the usual way to run it. The client's certificate is read from gunicorn's own TLS.
"""

from hsmkme.applications import application as _application

application = _application()
