"""Which permissions a role has: Google's predefined ones, and custom ones of the project.

The predefined roles have Google's own names and permissions ("IAM basic and predefined roles reference", read 2026-11-21),
as far as they name what is emulated.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field

_RUN_READ = (
    "run.configurations.get", "run.configurations.list", "run.locations.list", "run.operations.get", "run.operations.list",
    "run.revisions.get", "run.revisions.list", "run.routes.get", "run.routes.list", "run.services.get",
    "run.services.getIamPolicy", "run.services.list",
)  # fmt: skip
_RUN_WRITE = (
    "run.services.create", "run.services.delete", "run.services.update", "run.revisions.delete", "run.operations.delete",
)  # fmt: skip
_FUNCTIONS_READ = (
    "cloudfunctions.functions.get", "cloudfunctions.functions.getIamPolicy", "cloudfunctions.functions.list",
    "cloudfunctions.locations.get", "cloudfunctions.locations.list", "cloudfunctions.operations.get",
    "cloudfunctions.operations.list", "cloudfunctions.runtimes.list",
)  # fmt: skip
_FUNCTIONS_WRITE = (
    "cloudfunctions.functions.call", "cloudfunctions.functions.create", "cloudfunctions.functions.delete",
    "cloudfunctions.functions.invoke", "cloudfunctions.functions.sourceCodeGet", "cloudfunctions.functions.sourceCodeSet",
    "cloudfunctions.functions.update",
)  # fmt: skip
_PROJECT_READ = ("resourcemanager.projects.get", "resourcemanager.projects.list", "serviceusage.services.list")
_OBJECTS_WRITE = (
    "storage.folders.*", "storage.multipartUploads.*", "storage.objects.create", "storage.objects.createContext",
    "storage.objects.delete", "storage.objects.get", "storage.objects.list", "storage.objects.move", "storage.objects.restore",
    "storage.objects.update",
)  # fmt: skip
_ACCOUNT_READ = ("iam.serviceAccounts.get", "iam.serviceAccounts.list")
_ACCOUNT_KEYS = (
    "iam.serviceAccountKeys.create", "iam.serviceAccountKeys.delete", "iam.serviceAccountKeys.get", "iam.serviceAccountKeys.list",
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Role:
    """One role.

    Attributes:
        name: `roles/run.invoker`, `projects/p/roles/deployer`.
        permissions: What it allows; `storage.buckets.*` for all below.
        without: What it does not allow all the same.
        title: What it is called.
        description: What it is for.
        stage: `GA` or another stage of its life.
        deleted: Whether it is, and can still be taken back.
    """

    name: str
    permissions: Sequence[str]
    without: Sequence[str] = ()
    title: str = ""
    description: str = ""
    stage: str = "GA"
    deleted: bool = False

    def allows(self, permission: str) -> bool:
        """Whether it allows something."""
        return not self.deleted and _any(self.permissions, permission) and not _any(self.without, permission)


_KEPT_FROM_EDITORS = (
    "*.setIamPolicy", "iam.roles.*", "iam.serviceAccounts.getAccessToken", "iam.serviceAccounts.getOpenIdToken",
    "iam.serviceAccounts.signBlob", "iam.serviceAccounts.signJwt", "resourcemanager.projects.delete", "secretmanager.versions.access",
)  # fmt: skip
PREDEFINED = (
    Role(name="roles/owner", title="Owner", permissions=["*"]),
    Role(name="roles/editor", title="Editor", permissions=["*"], without=_KEPT_FROM_EDITORS),
    Role(
        name="roles/viewer", title="Viewer", permissions=["*.get", "*.list", "*.getIamPolicy"],
        without=["secretmanager.*", "storage.objects.*"],
    ),
    Role(name="roles/browser", title="Browser", permissions=["resourcemanager.projects.*"], without=_KEPT_FROM_EDITORS),
    Role(
        name="roles/cloudfunctions.admin", title="Cloud Functions Admin",
        permissions=["cloudfunctions.*", *_PROJECT_READ, *_RUN_READ, *_RUN_WRITE, "run.services.setIamPolicy", "run.routes.invoke"],
    ),
    Role(
        name="roles/cloudfunctions.developer", title="Cloud Functions Developer",
        permissions=[*_FUNCTIONS_READ, *_FUNCTIONS_WRITE, *_PROJECT_READ, *_RUN_READ, *_RUN_WRITE],
    ),
    Role(name="roles/cloudfunctions.viewer", title="Cloud Functions Viewer", permissions=[*_FUNCTIONS_READ, *_PROJECT_READ]),
    Role(name="roles/cloudfunctions.invoker", title="Cloud Functions Invoker", permissions=["cloudfunctions.functions.invoke"]),
    Role(name="roles/run.admin", title="Cloud Run Admin", permissions=["run.*", *_PROJECT_READ]),
    Role(name="roles/run.developer", title="Cloud Run Developer", permissions=[*_RUN_READ, *_RUN_WRITE, *_PROJECT_READ]),
    Role(name="roles/run.viewer", title="Cloud Run Viewer", permissions=[*_RUN_READ, *_PROJECT_READ]),
    Role(name="roles/run.invoker", title="Cloud Run Invoker", permissions=["run.jobs.run", "run.routes.invoke"]),
    Role(
        name="roles/run.sourceDeveloper", title="Cloud Run Source Developer",
        permissions=[*_RUN_READ, *_RUN_WRITE, "cloudbuild.builds.get", "run.builds.create", "storage.buckets.create", *_PROJECT_READ],
    ),
    Role(name="roles/run.builder", title="Cloud Run Builder", permissions=["logging.logEntries.create", "storage.objects.get"]),
    Role(name="roles/storage.admin", title="Storage Admin", permissions=["storage.*", *_PROJECT_READ]),
    Role(
        name="roles/storage.objectAdmin", title="Storage Object Admin",
        permissions=["storage.objects.*", "storage.folders.*", "storage.multipartUploads.*", *_PROJECT_READ],
    ),
    Role(name="roles/storage.objectUser", title="Storage Object User", permissions=[*_OBJECTS_WRITE, *_PROJECT_READ]),
    Role(
        name="roles/storage.objectCreator", title="Storage Object Creator",
        permissions=[
            "storage.objects.create", "storage.multipartUploads.abort", "storage.multipartUploads.create",
            "storage.multipartUploads.listParts",
        ],
    ),
    Role(name="roles/storage.objectViewer", title="Storage Object Viewer", permissions=["storage.objects.get", "storage.objects.list"]),
    Role(
        name="roles/storage.legacyBucketOwner", title="Storage Legacy Bucket Owner",
        permissions=[
            "storage.buckets.get", "storage.buckets.getIamPolicy", "storage.buckets.setIamPolicy", "storage.buckets.update",
            "storage.objects.create", "storage.objects.delete", "storage.objects.list", "storage.multipartUploads.*",
        ],
    ),
    Role(
        name="roles/storage.legacyBucketReader", title="Storage Legacy Bucket Reader",
        permissions=["storage.buckets.get", "storage.objects.list", "storage.multipartUploads.list"],
    ),
    Role(
        name="roles/storage.legacyBucketWriter", title="Storage Legacy Bucket Writer",
        permissions=[
            "storage.buckets.get", "storage.objects.create", "storage.objects.delete", "storage.objects.list",
            "storage.multipartUploads.*",
        ],
    ),
    Role(name="roles/storage.legacyObjectReader", title="Storage Legacy Object Reader", permissions=["storage.objects.get"]),
    Role(
        name="roles/storage.legacyObjectOwner", title="Storage Legacy Object Owner",
        permissions=["storage.objects.get", "storage.objects.getIamPolicy", "storage.objects.setIamPolicy", "storage.objects.update"],
    ),
    Role(name="roles/storage.bucketViewer", title="Storage Bucket Viewer", permissions=["storage.buckets.get", "storage.buckets.list"]),
    Role(
        name="roles/iam.serviceAccountUser", title="Service Account User",
        permissions=["iam.serviceAccounts.actAs", *_ACCOUNT_READ, *_PROJECT_READ],
    ),
    Role(
        name="roles/iam.serviceAccountTokenCreator", title="Service Account Token Creator",
        permissions=[
            "iam.serviceAccounts.getAccessToken", "iam.serviceAccounts.getOpenIdToken", "iam.serviceAccounts.implicitDelegation",
            "iam.serviceAccounts.signBlob", "iam.serviceAccounts.signJwt", *_ACCOUNT_READ,
        ],
    ),
    Role(
        name="roles/iam.serviceAccountOpenIdTokenCreator", title="Service Account OpenID Connect Identity Token Creator",
        permissions=["iam.serviceAccounts.getOpenIdToken"],
    ),
    Role(
        name="roles/iam.serviceAccountAdmin", title="Service Account Admin",
        permissions=["iam.serviceAccounts.*", *_PROJECT_READ],
        without=[
            "iam.serviceAccounts.actAs", "iam.serviceAccounts.getAccessToken", "iam.serviceAccounts.getOpenIdToken",
            "iam.serviceAccounts.signBlob", "iam.serviceAccounts.signJwt", "iam.serviceAccounts.implicitDelegation",
        ],
    ),
    Role(
        name="roles/iam.serviceAccountCreator", title="Create Service Accounts",
        permissions=["iam.serviceAccounts.create", *_ACCOUNT_READ, *_PROJECT_READ],
    ),
    Role(
        name="roles/iam.serviceAccountKeyAdmin", title="Service Account Key Admin",
        permissions=[*_ACCOUNT_KEYS, *_ACCOUNT_READ, *_PROJECT_READ],
    ),
    Role(name="roles/iam.roleAdmin", title="Role Administrator", permissions=["iam.roles.*", "resourcemanager.projects.get"]),
    Role(
        name="roles/resourcemanager.projectIamAdmin", title="Project IAM Admin",
        permissions=[
            "resourcemanager.projects.get", "resourcemanager.projects.getIamPolicy", "resourcemanager.projects.setIamPolicy",
        ],
    ),
    Role(name="roles/serviceusage.serviceUsageAdmin", title="Service Usage Admin", permissions=["serviceusage.*"]),
    Role(
        name="roles/serviceusage.serviceUsageConsumer", title="Service Usage Consumer",
        permissions=["serviceusage.services.get", "serviceusage.services.list", "serviceusage.services.use"],
    ),
    Role(
        name="roles/logging.viewer", title="Logs Viewer",
        permissions=["logging.logEntries.list", "logging.logs.list", "logging.operations.get", "logging.views.get", *_PROJECT_READ],
    ),
    Role(name="roles/logging.logWriter", title="Logs Writer", permissions=["logging.logEntries.create", "logging.logEntries.route"]),
    Role(name="roles/monitoring.viewer", title="Monitoring Viewer", permissions=["monitoring.*.get", "monitoring.*.list"]),
    Role(name="roles/secretmanager.admin", title="Secret Manager Admin", permissions=["secretmanager.*", *_PROJECT_READ[:2]]),
    Role(
        name="roles/secretmanager.secretAccessor", title="Secret Manager Secret Accessor",
        permissions=["secretmanager.versions.access", *_PROJECT_READ[:2]],
    ),
    Role(
        name="roles/cloudbuild.builds.builder", title="Cloud Build Service Account",
        permissions=["cloudbuild.builds.*", "storage.objects.get"],
    ),
    Role(
        name="roles/artifactregistry.reader", title="Artifact Registry Reader",
        permissions=["artifactregistry.*.get", "artifactregistry.*.list"],
    ),
    Role(name="roles/artifactregistry.writer", title="Artifact Registry Writer", permissions=["artifactregistry.*"]),
)  # fmt: skip


@dataclass(slots=True)
class Roles:
    """The roles that there are."""

    defined: dict[str, Role] = field(default_factory=lambda: {role.name: role for role in PREDEFINED})

    def find(self, name: str) -> Role | None:
        """Return a role by its whole name."""
        return self.defined.get(name)

    def allows(self, name: str, permission: str) -> bool:
        """Whether the role of a name allows something."""
        found = self.defined.get(name)
        return found is not None and found.allows(permission)


def _any(patterns: Sequence[str], permission: str) -> bool:
    return any(fnmatch.fnmatchcase(permission, pattern) for pattern in patterns)
