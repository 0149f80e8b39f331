"""The OTel Resource of a service, as its records name it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector
from opentelemetry.sdk.resources import Resource as OtelResource

from otel_audit.record import coerce
from otel_audit.trail.resource import Resource

if TYPE_CHECKING:
    from otel_audit.settings import Settings


def resource_of(settings: Settings) -> tuple[Resource, str]:
    """Build the OTel Resource: OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME, our settings."""
    named = {SERVICE_NAME: settings.service_name} if settings.service_name else {}
    try:
        resource = OtelResource.create(named)
    except RuntimeError:  # its detectors want threads, and the interpreter ends
        environment = OTELResourceDetector().detect()
        unnamed = OtelResource({SERVICE_NAME: "unknown_service"})
        resource = unnamed.merge(environment).merge(OtelResource(named))
    # The environment may hold bytes that are no UTF-8, and JSON cannot.
    attributes, _ = coerce.plain(resource.attributes)
    service = str(attributes[SERVICE_NAME])
    json = orjson.dumps(attributes, option=orjson.OPT_SORT_KEYS)
    return Resource.of(json), service
