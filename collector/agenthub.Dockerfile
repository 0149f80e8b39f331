# The example application. Context: the root of the checkout.
FROM python:3.12-slim-bookworm
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY otel_audit otel_audit
COPY packaging packaging
RUN pip install --no-cache-dir --constraint constraints.txt ".[example]" \
    && useradd --uid 65532 --create-home hub \
    && install -d -m 0700 -o hub -g hub /data
COPY examples examples
COPY collector/__init__.py collector/__init__.py
COPY collector/stack/__init__.py collector/stack/hub.py collector/stack/
USER 65532:65532
VOLUME ["/data"]
EXPOSE 8000
CMD ["python", "-m", "collector.stack.hub", "--host", "0.0.0.0", "--port", "8000"]
