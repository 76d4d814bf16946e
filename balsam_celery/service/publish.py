"""Celery messages (protocol 2) to queues, by name, over a connection of our own."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from celery import Celery
from kombu import Connection, Producer
from kombu.exceptions import OperationalError


class Publisher:
    """Publishes to queues; for one thread.  After an error the next call connects again."""

    def __init__(self, app: Celery[Any]) -> None:
        self._app = app
        self._connection: Connection | None = None
        self._producer: Producer | None = None

    def task(
        self,
        queue: str,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None = None,
        *,
        id: str | None = None,
        headers: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """Send the message of a Celery task.

        Args:
            queue: without the site's prefix.
            name: of the Celery task.
            args, kwargs: JSON values.
            id: Celery id; ``None``: a new one.
            headers: of ours, beside Celery's.
            options: of ``AMQP.as_task_v2``, such as ``expires``.

        Raises:
            kombu.exceptions.OperationalError: the broker did not take it.
        """
        message = self._app.amqp.as_task_v2(
            id or str(uuid.uuid4()), name, args=tuple(args), kwargs=dict(kwargs or {}), **options
        )
        self.raw(
            message.body,
            exchange="",
            routing_key=queue,
            headers={**message.headers, **(headers or {})},
            **message.properties,
        )

    def raw(self, body: Any, **properties: Any) -> None:
        """Publish a JSON body; ``properties`` as ``kombu.Producer.publish`` takes them.

        Raises:
            kombu.exceptions.OperationalError: the broker did not take it.
        """
        try:
            _, producer = self._open()
            producer.publish(body, serializer="json", retry=False, **properties)
        except OperationalError:
            self.close()
            raise
        except self._transport_errors() as error:
            self.close()
            raise OperationalError(str(error)) from error

    @property
    def connection(self) -> Connection:
        """The open connection.

        Raises:
            kombu.exceptions.OperationalError: the broker does not answer.
        """
        return self._open()[0]

    def _open(self) -> tuple[Connection, Producer]:
        if self._connection is None or self._producer is None:
            self._connection = self._app.connection_for_write()
            self._connection.ensure_connection(max_retries=1, timeout=5)
            self._producer = Producer(self._connection.default_channel, auto_declare=False)
        return self._connection, self._producer

    def _transport_errors(self) -> tuple[type[BaseException], ...]:
        if self._connection is None:
            return (OSError,)
        connection = self._connection
        return (*connection.recoverable_connection_errors, *connection.recoverable_channel_errors)

    def close(self) -> None:
        """Drop the connection."""
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            connection.release()
