//! Generates two files of `crds/` from the types: the manifest's schema and the CustomResourceDefinition.

use std::{fs, io, path::Path};

use millrace_crds::RecordPipeline;

fn main() -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::write(folder.join("recordpipeline.schema.yaml"), RecordPipeline::schema_yaml())?;
    fs::write(folder.join("recordpipeline.crd.yaml"), RecordPipeline::crd_yaml())
}
