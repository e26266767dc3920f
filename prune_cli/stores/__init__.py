"""REACH: objects in a store, wherever fsspec can reach: s3://, gs://, az://, hf://, https://.

`paths` (a path in a store), `store` (the connection, and what it told), `ranges` (bytes by ranges),
`uploads` (objects that appear whole), `s3` (uploads in parts), `traffic` (how many bytes there were).
Local paths never come here, and fsspec is imported only once a URL is met. Credentials and
endpoints are fsspec's business: its configuration and the environment decide them.
"""

from prune_cli.stores.hub import locate_checkpoint
from prune_cli.stores.paths import Location, StorePath, is_inside, locate, name_within

__all__ = ["Location", "StorePath", "is_inside", "locate", "locate_checkpoint", "name_within"]
