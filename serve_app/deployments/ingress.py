"""The ingress: the HTTP app as a Serve deployment. Stateless and without torch, so any number of replicas may run.

Serve's proxy brings it requests, or HAProxy does without Serve: then each replica listens by itself.
"""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

from ray import serve

from serve_app import log
from serve_app.api.app import create_app
from serve_app.api.auth.authentication import Authenticator
from serve_app.api.auth.origin import AllowedOrigins
from serve_app.api.comfy.page import page
from serve_app.api.concurrency_limits import ConcurrencyLimits
from serve_app.api.operator.audit import AuditLog
from serve_app.config import AppConfig
from serve_app.config.tenants import TenantsConfig
from serve_app.deployments import metrics, metrics_export, telemetry
from serve_app.deployments.handles import scheduler_client
from serve_app.deployments.log_files import LogFiles
from serve_app.deployments.proxy import http_protocol
from serve_app.deployments.proxy.gate import SERVES_LOGGER
from serve_app.deployments.proxy.haproxy import socket_path
from serve_app.deployments.proxy.listener import Listener
from serve_app.deployments.proxy.loopback import keep_to_the_node
from serve_app.deployments.relay import Relay
from serve_app.deployments.replica import ObjectStore
from serve_app.deployments.scheduler import ensure
from serve_app.graph.plan import Pool
from serve_app.limits import REFUSALS
from serve_app.replica import collector
from serve_app.replica.files import open_catalog, open_store
from serve_app.service.request_limits import Limits
from serve_app.service.service import Service
from serve_app.store.files.input_folders import choices
from serve_app.store.page.extensions import Extensions
from serve_app.store.page.pack_content import PackContent
from serve_app.store.page.userdata import UserData


@serve.ingress()
class Ingress:
    """The HTTP server. sockets: the folder of the Unix sockets behind HAProxy; None behind Serve's proxy. pools: the
    handles of the pools' deployments, bound so that Serve deploys them too.
    """

    def __init__(self, config: AppConfig, sockets: Path | None, *pools: Any) -> None:
        telemetry.configure(config, "ingress")
        keep_to_the_node()
        # Behind Serve's own HAProxy each replica listens by a server of Serve's, which is made after this.
        http_protocol.install()
        log.escape(SERVES_LOGGER)
        self._config, self._sockets = config, sockets
        self._listener: Listener | None = None
        self._authenticator: Authenticator | None = None
        self._concurrency = ConcurrencyLimits.of(config)
        self._showing: asyncio.Task[None] | None = None
        self._relay = Relay({pool.name: handle for pool, handle in zip(config.pools, pools, strict=True)})
        ensure(config)

    async def check_health(self) -> None:
        """Answer Serve's health check in the event loop of requests, so that it fails if that is blocked."""
        if self._showing is None:
            self._showing = asyncio.create_task(
                metrics.show(lambda: metrics.limit_figures(self._concurrency.use, REFUSALS))
            )
        if self._listener is not None:
            self._listener.check()

    def __serve_build_asgi_app__(self) -> Any:
        with collector.freeze_startup_objects():
            return self._app()

    def _app(self) -> Any:
        config = self._config
        catalog, store = open_catalog(config), open_store(config)

        users = UserData(config.user_dir, many=config.multi_user)
        service = Service(
            scheduler_client(),
            store,
            partial(choices, store, catalog),
            Limits.of(config),
            catalog=catalog,
            user_data=users,
            extensions=Extensions(config.custom_nodes_dir),
            pack_content=PackContent(config.custom_nodes_dir),
            fetch=ObjectStore().get,
            relay=None if config.custom_nodes_dir is None and not any(p.comfyui for p in config.pools) else self._relay,
            metrics=metrics_export.MetricsExport(),
            logs=LogFiles(),
            pools=[Pool.of(pool) for pool in config.pools],
            shared_packs=config.tenants is not None and config.tenants.shared_packs,
        )
        ingress = config.ingress
        authenticator = None if config.tenants is None else _authenticator(service, config.tenants)
        self._authenticator = authenticator
        app = create_app(
            service,
            ingress.root_dialect,
            page.installed(),
            AllowedOrigins.of(ingress),
            self._concurrency,
            authenticator,
            ingress.page_hosts,
        )
        if self._sockets is not None:
            self._listener = Listener(app, socket_path(self._sockets, serve.get_replica_context().rank.rank))
        return app

    async def __del__(self) -> None:
        if self._authenticator is not None:
            await self._authenticator.close()
        if self._listener is not None:
            await self._listener.close()


def _authenticator(service: Service, tenants: TenantsConfig) -> Authenticator:
    tokens = None
    if tenants.jwt is not None:
        # Here and not above: who has keys alone needs no cryptography.
        from serve_app.api.auth.tokens import TokenVerifier

        tokens = TokenVerifier(tenants.jwt)
    audit = AuditLog(lambda: service, tenants.audit_days)
    return Authenticator(lambda: service, audit, tokens, tenants.trusted_proxies)
