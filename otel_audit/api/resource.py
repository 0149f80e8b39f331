"""The OTel Resource of a service, as its records name it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from opentelemetry.sdk.resources import SERVICE_NAME
from opentelemetry.sdk.resources import Resource as OtelResource

from otel_audit.record import coerce
from otel_audit.trail.resource import Resource

if TYPE_CHECKING:
    from otel_audit.settings import Settings


def resource_of(settings: Settings) -> tuple[Resource, str]:
    """Build the OTel Resource: OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME, our settings."""
    named = {SERVICE_NAME: settings.service_name} if settings.service_name else {}
    # The environment may hold bytes that are no UTF-8, and JSON cannot.
    attributes, _ = coerce.plain(OtelResource.create(named).attributes)
    service = str(attributes[SERVICE_NAME])
    json = orjson.dumps(attributes, option=orjson.OPT_SORT_KEYS)
    return Resource.of(json), service
