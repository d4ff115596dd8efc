"""Verifies a JSON Web Token with PyJWT by the published key and prints its header and claims as one JSON object.

The token stands on standard input; the arguments are issuer, audience and the address of the JWK set.
"""

import json
import sys

import jwt

issuer, audience, address = sys.argv[1:4]
token = sys.stdin.read().strip()
try:
    claims = jwt.decode(
        token,
        jwt.PyJWKClient(address).get_signing_key_from_jwt(token),
        algorithms=["EdDSA"],
        issuer=issuer,
        audience=audience,
        options={"require": ["exp", "iat", "jti", "iss", "aud"]},
    )
except (jwt.InvalidTokenError, jwt.PyJWKClientError) as error:
    sys.exit(f"refused: {type(error).__name__}")
print(json.dumps({"header": jwt.get_unverified_header(token), "claims": claims}))
