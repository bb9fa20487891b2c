"""Storage accounts of Resource Manager, and their blobs in Azurite, driven by azure-storage-blob."""

from datetime import UTC, datetime, timedelta

import httpx
import pytest
from azure.core import MatchConditions
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
)
from azure.storage.blob import BlobSasPermissions, BlobServiceClient, generate_blob_sas


def open_blobs(cloud, account, number=0):
    """Return Microsoft's client of an account, with one of its keys."""
    key = cloud.post(f"{account}/listKeys").json()["keys"][number]["value"]
    endpoint = cloud.get(account).json()["properties"]["primaryEndpoints"]["blob"]
    name = account.rpartition("/")[2]
    return BlobServiceClient(endpoint, credential={"account_name": name, "account_key": key}, retry_total=0)


@pytest.fixture
def account(cloud):
    """Return a new storage account."""
    return cloud.make_account()


def test_blobs_are_written_read_and_guarded_by_conditions(cloud, account):
    with open_blobs(cloud, account) as blobs:
        container = blobs.create_container("models")
        blob = container.get_blob_client("a/b c.bin")
        version = blob.upload_blob(b"one")["etag"]

        assert blob.download_blob().readall() == b"one"
        with pytest.raises(ResourceExistsError):
            blob.upload_blob(b"two", overwrite=False)
        blob.upload_blob(b"two", overwrite=True, etag=version, match_condition=MatchConditions.IfNotModified)
        with pytest.raises(ResourceModifiedError):
            blob.upload_blob(b"three", overwrite=True, etag=version, match_condition=MatchConditions.IfNotModified)


def test_a_signed_address_opens_one_blob_for_a_while(cloud, account):
    with open_blobs(cloud, account) as blobs:
        blob = blobs.create_container("models").get_blob_client("signed")
        blob.upload_blob(b"here")

        def sign(ends):
            return generate_blob_sas(
                blobs.account_name, "models", "signed", account_key=blobs.credential.account_key,
                permission=BlobSasPermissions(read=True), expiry=datetime.now(UTC) + ends,
            )  # fmt: skip

        assert httpx.get(f"{blob.url}?{sign(timedelta(minutes=5))}").content == b"here"
        assert httpx.get(f"{blob.url}?{sign(timedelta(minutes=-5))}").status_code == 403


def test_a_key_that_was_renewed_opens_nothing_any_more_and_the_other_does(cloud, account):
    with open_blobs(cloud, account, 0) as first, open_blobs(cloud, account, 1) as second:
        first.create_container("models")
        assert cloud.post(f"{account}/regenerateKey", {"keyName": "key1"}).status_code == 200

        with pytest.raises((ClientAuthenticationError, HttpResponseError)):
            first.get_container_client("models").get_container_properties()
        assert second.get_container_client("models").get_container_properties().name == "models"


def test_a_deleted_account_takes_its_blobs_along(cloud, account):
    with open_blobs(cloud, account) as blobs:
        blobs.create_container("models")
    body = {"location": "eastus", "sku": {"name": "Standard_LRS"}, "kind": "StorageV2"}

    assert cloud.delete(account).status_code == 200
    assert cloud.delete(account).status_code == 204
    assert cloud.put(account, body).status_code == 200

    with open_blobs(cloud, account) as blobs:
        assert list(blobs.list_containers()) == []


def test_containers_can_be_made_and_seen_from_both_sides(cloud, account):
    containers = f"{account}/blobServices/default/containers"

    assert cloud.put(f"{containers}/from-manager").status_code == 201
    assert cloud.put(f"{containers}/from-manager").status_code == 200
    with open_blobs(cloud, account) as blobs:
        blobs.create_container("from-client")
    assert [one["name"] for one in cloud.get(containers).json()["value"]] == ["from-client", "from-manager"]
    assert cloud.delete(f"{containers}/from-client").status_code == 200
    assert cloud.get(f"{containers}/from-client").status_code == 404
    assert cloud.put(f"{containers}/No_Name").json()["error"]["code"] == "ContainerNameInvalid"


@pytest.mark.parametrize("name", ["ab", "Upper", "with-hyphen", "x" * 25])
def test_a_name_that_no_account_can_have_is_refused(cloud, name):
    body = {"location": "eastus", "sku": {"name": "Standard_LRS"}, "kind": "StorageV2"}

    refused = cloud.ask("PUT", f"{cloud.group}/providers/Microsoft.Storage/storageAccounts/{name}", body)

    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "AccountNameInvalid")


def test_account_names_are_the_only_ones_in_the_world(cloud, account):
    other, name = f"{cloud.subscription}/resourceGroups/others", account.rpartition("/")[2]
    cloud.put(other, {"location": "eastus"})
    check = f"{cloud.subscription}/providers/Microsoft.Storage/checkNameAvailability"

    assert (
        cloud.post(check, {"name": name, "type": "Microsoft.Storage/storageAccounts"}).json()["reason"]
        == "AlreadyExists"
    )
    taken = cloud.ask(
        "PUT", f"{other}/providers/Microsoft.Storage/storageAccounts/{name}",
        {"location": "eastus", "sku": {"name": "Standard_LRS"}},
    )  # fmt: skip
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "StorageAccountAlreadyTaken")
