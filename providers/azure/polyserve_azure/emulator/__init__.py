"""Azure on loopback: Blob Storage, Resource Manager, publishing, and function apps that really run.

Blobs are kept by Azurite, which is Microsoft's own emulator. Resource Manager, the publish API and the HTTP front of the
Functions host are the emulator's own, since nobody has them for loopback; what was published runs in processes of its
own under Microsoft's real engine, `azure-functions-runtime`. Nothing here knows the adapter beside it: an emulator that
mirrors our own client would prove nothing.

The way of a request:

    listener  ->  server  ->  arm (tokens, roles, faults)  ->  groups | storage | plans | sites | insights | ...
                     |-> publishing  ->  packages, blobs (Azurite)  ->  fleet
                     |-> front (routes, keys)  ->  fleet  ->  instances  <->  worker (azure-functions-runtime)
                     |-> logs (Application Insights' query API)

The options in `ready.json`, with which a client finds everything:

    subscription_id       the one subscription
    tenant_id             its Microsoft Entra tenant
    location              `eastus`; also there: every region of `stacks.LOCATIONS`
    resource_group        a name to use; the group is not there until it is made
    management_url        stands for https://management.azure.com
    token_file            JSON {"access_token", "token_type", "expires_on"} of an owner of the subscription; good for every audience
    app_url_template      stands for https://{name}.azurewebsites.net
    scm_url_template      stands for https://{name}.scm.azurewebsites.net: `/api/publish`, `/api/deployments/latest`
    insights_url          stands for https://api.applicationinsights.io: `/v1/apps/{AppId}/query`
    authority_url         stands for https://login.microsoftonline.com: `/{tenant}/oauth2/v2.0/token`

Blob endpoints are where real ones are: in `properties.primaryEndpoints.blob` of a storage account.
"""

from polyserve_azure.emulator.server import Emulator

__all__ = ["Emulator"]
