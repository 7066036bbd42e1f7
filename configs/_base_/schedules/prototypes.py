# What the schedules of prototype networks share. Each of them says how long the first stage is.
warm_stage = dict(train=['add_on', 'prototypes'])
joint_stage = dict(train=['backbone', 'add_on', 'prototypes'])
# Proto2Proto (Keswani et al., CVPR 2022): first its two terms alone; then all, with the last layer,
# which begins as the teacher's.
terms_stage = dict(warm_stage, student_weight=0)
whole_stage = dict(train=['backbone', 'add_on', 'prototypes', 'last_layer'])
val_cfg = dict()
test_cfg = dict()
# Parts of the network are not trained in each stage
find_unused_parameters = True
