"""Verifies a JSON Web Token with PyJWT and prints its header and claims as one JSON object.

The key stands in JWT_KEY, the token on standard input; the arguments are issuer and audience.
"""

import json
import os
import sys

import jwt

issuer, audience = sys.argv[1:3]
token = sys.stdin.read().strip()
try:
    claims = jwt.decode(
        token,
        os.environ["JWT_KEY"],
        algorithms=["HS256"],
        issuer=issuer,
        audience=audience,
        options={"require": ["exp", "iat", "jti", "iss", "aud"]},
    )
except jwt.InvalidTokenError as error:
    sys.exit(f"refused: {type(error).__name__}")
print(json.dumps({"header": jwt.get_unverified_header(token), "claims": claims}))
