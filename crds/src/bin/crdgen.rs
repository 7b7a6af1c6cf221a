//! Prints the schema of the `RecordPipeline` resource: `crdgen > crds/recordpipeline.schema.yaml`.

fn main() {
    print!("{}", millrace_crds::RecordPipeline::schema_yaml());
}
