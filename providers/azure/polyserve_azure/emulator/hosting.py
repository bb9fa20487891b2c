"""What runs for each site: from its configuration and its package to instances.

This is where Resource Manager's side (what is wanted) and the Functions host's side (what runs) meet.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from pathlib import Path

from polyserve.emulation.placeholders import Placeholders
from polyserve_azure.emulator.fleet import App, Scale
from polyserve_azure.emulator.front import Hosting, read_host_json, read_timeout
from polyserve_azure.emulator.installing import find_interpreter, install_engine, install_messages
from polyserve_azure.emulator.instances import Line, Recipe
from polyserve_azure.emulator.limits import Limits
from polyserve_azure.emulator.principals import Principals
from polyserve_azure.emulator.resources import Resource
from polyserve_azure.emulator.siterules import DEFAULT_CONCURRENCY
from polyserve_azure.emulator.worker import OFFICIAL

MESSAGES = Path("tests", "protos")
"""Where the wheel has the official messages."""


class HostingPlatform:
    """Has the instances of all sites.

    Args:
        directory: Where packages are unpacked and instances write.
        principals: Gives identities their tokens.
        log: Takes the lines of a site's instances.
        limits: What is allowed.
        url: Returns the emulator's address.

    Attributes:
        headers: The app whose managed identity a caller has who sends this header.
    """

    def __init__(
        self,
        directory: Path,
        principals: Principals,
        log: Callable[[Resource, str, list[Line]], None],
        limits: Limits,
        url: Callable[[], str],
    ) -> None:
        self.limits = limits
        self.headers: dict[str, Resource] = {}
        self._directory, self._principals, self._log, self._url = directory, principals, log, url
        self._all: dict[str, Hosting] = {}
        self._placeholders = Placeholders(directory)

    def find(self, name: str) -> Hosting | None:
        """Return what runs for a site, by its name."""
        return self._all.get(name.lower())

    async def changed(self, site: Resource) -> None:
        """Bring what runs for a site in line with its configuration."""
        hosting = self._all.get(site.name.lower())
        if hosting is None:
            scratch = self._directory / "scratch" / site.name

            def log(instance: str, lines: list[Line]) -> None:
                self._log(site, instance, lines)

            app = App(scratch, log, self._placeholders, most=self.limits.instances, idle_s=self.limits.idle_s)
            hosting = self._all[site.name.lower()] = Hosting(name=site.name, app=app)
            site.hidden["hosting"] = hosting
            header = site.hidden["identity_header"] = secrets.token_hex(16)
            self.headers[header] = site
        self.configure(site, hosting)
        if "root" not in site.hidden:
            return
        async with hosting.changing:
            recipe = await asyncio.to_thread(self.recipe, site)
            current = hosting.app.current
            if current is None or current.recipe != recipe:
                await hosting.app.restart(recipe)
        hosting.app.resize(self._scale(site))

    async def restart(self, site: Resource) -> None:
        """Start the instances of a site anew, though nothing of it changed."""
        hosting = self._all.get(site.name.lower())
        if hosting is None or "root" not in site.hidden:
            return
        async with hosting.changing:
            await hosting.app.restart(await asyncio.to_thread(self.recipe, site))

    def configure(self, site: Resource, hosting: Hosting) -> None:
        """Take over what needs no new instance."""
        config = site.properties["functionAppConfig"]
        hosting.app.rolling = config["siteUpdateStrategy"]["type"] == "RollingUpdate"
        hosting.app.scale = self._scale(site)
        hosting.homepage = site.hidden["settings"].get("AzureWebJobsDisableHomepage", "").lower() != "true"
        hosting.callers = self._callers(site)

    def read_host_json(self, site: Resource, hosting: Hosting) -> None:
        """Take over what the package says in its `host.json`."""
        found = read_host_json((Path(site.hidden["root"]) / "host.json").read_bytes())
        extensions = found.get("extensions")
        http = extensions.get("http") if isinstance(extensions, dict) else None
        prefix = http.get("routePrefix", "api") if isinstance(http, dict) else "api"
        hosting.prefix = str(prefix).strip("/")
        hosting.function_timeout_s = read_timeout(found.get("functionTimeout"))

    def recipe(self, site: Resource) -> Recipe:
        """Return what instances of a site are started from now."""
        runtime = site.properties["functionAppConfig"]["runtime"]["version"]
        engine = [str(install_engine(runtime))]
        root = Path(site.hidden["root"])
        variables = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            "FUNCTIONS_EXTENSION_VERSION": "~4",
            "FUNCTIONS_WORKER_RUNTIME": "python",
            "FUNCTIONS_WORKER_RUNTIME_VERSION": runtime,
            "AzureWebJobsScriptRoot": str(root),
            "REGION_NAME": site.location,
            "WEBSITE_SITE_NAME": site.name,
            "WEBSITE_HOSTNAME": f"{site.name}.azurewebsites.net",
            "WEBSITE_SKU": "FlexConsumption",
            "WEBSITE_OWNER_NAME": f"{site.path.split('/')[2]}+{site.group}-{site.location}webspace-Linux",
            **site.hidden["settings"],
        }
        if site.more.get("identity"):
            variables |= {
                "IDENTITY_ENDPOINT": f"{self._url()}/msi/token",
                "IDENTITY_HEADER": site.hidden["identity_header"],
            }
        if self.limits.official_messages:
            messages = install_messages()
            engine.append(str(messages))
            variables[OFFICIAL] = str(messages / MESSAGES)
        memory = site.properties["functionAppConfig"]["scaleAndConcurrency"]["instanceMemoryMB"]
        return Recipe(
            root=root, interpreter=find_interpreter(runtime), engine=engine, variables=variables, memory_mb=memory
        )

    async def removed(self, site: Resource) -> None:
        """End what runs for a site."""
        hosting = self._all.pop(site.name.lower(), None)
        self.headers.pop(site.hidden.get("identity_header", ""), None)
        if hosting is not None:
            await hosting.app.close()

    async def close(self) -> None:
        """End everything."""
        for hosting in self._all.values():
            await hosting.app.close()
        await self._placeholders.close()

    def _scale(self, site: Resource) -> Scale:
        given = site.properties["functionAppConfig"]["scaleAndConcurrency"]
        http = ((given.get("triggers") or {}).get("http") or {}).get("perInstanceConcurrency")
        ready = sum(one["instanceCount"] for one in given["alwaysReady"] if one["name"] == "http")
        return Scale(maximum=given["maximumInstanceCount"], concurrency=http or DEFAULT_CONCURRENCY, always_ready=ready)

    def _callers(self, site: Resource) -> Callable[[str], bool] | None:
        """Return what checks a caller's Entra token, where the site has App Service authentication."""
        rules = site.hidden.get("authentication") or {}
        if not (rules.get("platform") or {}).get("enabled"):
            return None
        validation = rules.get("globalValidation") or {}
        if validation.get("unauthenticatedClientAction", "RedirectToLoginPage") == "AllowAnonymous":
            return None
        directory = ((rules.get("identityProviders") or {}).get("azureActiveDirectory")) or {}
        audiences = tuple((directory.get("validation") or {}).get("allowedAudiences") or ())
        client = (directory.get("registration") or {}).get("clientId")
        accepted = (*audiences, *((f"api://{client}", client) if client else ()))

        def check(authorization: str) -> bool:
            from polyserve_azure.emulator.errors import ServiceError

            try:
                self._principals.read(authorization, accepted)
            except ServiceError:
                return False
            return True

        return check
