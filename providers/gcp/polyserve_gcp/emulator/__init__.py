"""Google Cloud on loopback: Cloud Storage, Cloud Functions and Cloud Run, and functions that really run.

Objects are kept by fake-gcs-server behind a layer that is strict where it is not. The APIs of Cloud Functions (v2) and Cloud
Run are the emulator's own, since nobody has them for loopback; their messages and paths are those of Google's own client
libraries, over REST and over gRPC. What was uploaded runs in processes of its own under Google's functions-framework.
Nothing here knows the adapter beside it: an emulator that mirrors our own client would prove nothing.

The way of a request:

    ground (a port for each API)  ->  storage, tokens, iam, projects  <->  identities, access
       |-> rest, grpc_door  ->  functions_api  ->  building  ->  services
       |                    ->  run_api        ->               services  ->  fleet  ->  instances (functions-framework)
       |                    ->  operations
       |-> logs (entries:list)
    front (a port for each service and each tag)  ->  fleet  ->  instances

The options in `ready.json`, with which a client finds everything:

    project            the one project
    region             `us-central1`; also there: every region of `asking.REGIONS`
    credentials_file   the key file of a service account that owns the project
    endpoints          address of each API, by its host name; Cloud Functions and Cloud Run over REST
    retry_s            how long to wait, in seconds, where a function is busy: operations take a moment here, not minutes

Beside them `grpc` is the address of Cloud Functions and Cloud Run over gRPC, without TLS.
"""

from polyserve_gcp.emulator.server import Emulator

__all__ = ["Emulator"]
