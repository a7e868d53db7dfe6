"""What is generated from the types: CRD, field reference, and the tables of the chart."""
