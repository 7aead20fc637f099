"""Tests of imports and exports; a package, so that its modules are not taken for another folder's."""
