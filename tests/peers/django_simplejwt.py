"""A Django REST framework service that trusts SimpleJWT access tokens signed with SIGNING_KEY, or, when JWK_URL
is set, with a key published there.

`/stateless/` reads the user from the token alone; `/database/` loads a user whose key is a UUID.
POST `/users/` with `{"id"}` makes such a user. The argument is the port.
"""

import os
import sys
import uuid
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import django
from django.apps import AppConfig
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.urls import path

# Django names this file's classes by module.
sys.modules.setdefault("django_simplejwt", sys.modules[__name__])


class People(AppConfig):
    """The application of the user model; a model can only be made once its application is."""

    name = "django_simplejwt"
    label = "people"
    path = os.path.dirname(os.path.abspath(__file__))

    def import_models(self):
        from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
        from django.db import models

        self.models = self.apps.all_models[self.label]

        class Person(AbstractBaseUser):
            id = models.UUIDField(primary_key=True, default=uuid.uuid4)
            is_active = models.BooleanField(default=True)
            USERNAME_FIELD = "id"
            objects = BaseUserManager()

            class Meta:
                app_label = "people"


settings.configure(
    SECRET_KEY="only-for-this-test",
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF="django_simplejwt",
    USE_TZ=True,
    INSTALLED_APPS=[
        "django.contrib.contenttypes",
        "django.contrib.auth",
        "rest_framework",
        "rest_framework_simplejwt",
        "django_simplejwt.People",
    ],
    AUTH_USER_MODEL="people.Person",
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": "file:peers?mode=memory&cache=shared",
            "OPTIONS": {"uri": True},
        }
    },
    SIMPLE_JWT={
        "ALGORITHM": os.environ.get("ALGORITHM", "HS256"),
        "SIGNING_KEY": os.environ.get("SIGNING_KEY", ""),
        "JWK_URL": os.environ.get("JWK_URL"),
        "ISSUER": os.environ.get("ISSUER"),
        "AUDIENCE": os.environ.get("AUDIENCE"),
        "USER_ID_FIELD": "id",
        "USER_ID_CLAIM": "user_id",
    },
)


django.setup()

from django.contrib.auth import get_user_model  # noqa: E402
from django.db import connection  # noqa: E402
from rest_framework.permissions import IsAuthenticated  # noqa: E402
from rest_framework.response import Response  # noqa: E402
from rest_framework.views import APIView  # noqa: E402
from rest_framework_simplejwt.authentication import (  # noqa: E402
    JWTAuthentication,
    JWTStatelessUserAuthentication,
)


class Guarded(APIView):
    permission_classes = [IsAuthenticated]

    def get(self, request):
        return Response({"user_id": str(request.user.id)})


class Stateless(Guarded):
    authentication_classes = [JWTStatelessUserAuthentication]


class Database(Guarded):
    authentication_classes = [JWTAuthentication]


class Users(APIView):
    authentication_classes = []
    permission_classes = []

    def post(self, request):
        get_user_model().objects.create(id=request.data["id"])
        return Response({"id": request.data["id"]}, status=201)


urlpatterns = [
    path("stateless/", Stateless.as_view()),
    path("database/", Database.as_view()),
    path("users/", Users.as_view()),
]


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Quiet(WSGIRequestHandler):
    def log_message(self, format, *arguments):
        pass


# The database lives in memory as long as this connection is open.
with connection.schema_editor() as editor:
    editor.create_model(get_user_model())

server = make_server(
    "127.0.0.1", int(sys.argv[1]), get_wsgi_application(), server_class=Server, handler_class=Quiet
)
print("ready", file=sys.stderr, flush=True)
server.serve_forever()
