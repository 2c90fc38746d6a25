//! The litefs storage engine.
