"""AWS on loopback: the wire calls of S3, IAM, STS, Lambda, ECR, CloudWatch Logs and API Gateway, and real functions.

moto keeps the state of S3, IAM, STS, ECR, CloudWatch Logs and API Gateway; Lambda is the emulator's own, and runs what
was uploaded under the real runtime client, `awslambdaric`. Nothing here knows the adapter beside it: an emulator that
mirrors our own client would prove nothing.

The way of a request:

    listener  ->  server  ->  access (signatures, identities, policies, actions)
                     |-> lambda_api  ->  control | traffic | grants | urls | invoking
                     |                     -> fleet -> environments -> runtime_api <- awslambdaric
                     |-> services (moto)
    urls, http_api, registry: listeners of their own, for function URLs, HTTP APIs and images
"""

from polyserve_aws.emulator.server import Emulator

__all__ = ["Emulator"]
