"""REACH: objects in a store, wherever fsspec can reach: s3://, gs://, az://, hf://, https://.

Reading order: `store` (the connection, and what it told), `ranges` (bytes by ranges), `paths` (a path
in a store); `requests`, `uploads` and `s3` (objects that are written); `hub_name`, `hub_files`, `hub`
and `hub_commit` (models of the Hugging Face Hub), `web_files` (web servers); `traffic` (what is told).
Local paths never come here, and fsspec is imported only once a URL is met. Credentials and
endpoints are fsspec's business: its configuration and the environment decide them.
"""

from prune_cli.stores.hub import locate_checkpoint
from prune_cli.stores.paths import Location, StorePath, is_inside, locate, name_within

__all__ = ["Location", "StorePath", "is_inside", "locate", "locate_checkpoint", "name_within"]
